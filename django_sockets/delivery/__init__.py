"""From received bytes to local subscribers: sequences, gaps, fan-out and bounded queues."""
