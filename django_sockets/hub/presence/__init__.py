"""The presence of one hub: entries of this process, replicas of channels, leases."""
