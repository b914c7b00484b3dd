"""What `predict` reads and writes: images, videos, label maps."""
