"""What makes passes of a proxy cheaper, and changes no result."""
