"""Fine-tune vision foundation models for semantic segmentation and rank them."""
