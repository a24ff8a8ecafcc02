"""valkey-glide as the driver that publishes."""
