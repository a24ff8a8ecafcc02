"""Who is present on the channels of one hub: entries of this process, replicas, leases."""
