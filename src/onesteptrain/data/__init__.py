"""What is read and chosen from: pools in many formats, images, anchors, near-duplicates."""
