"""The histories of the channels of a hub: healing, resuming, and pages for applications."""
