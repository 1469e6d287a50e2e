"""What tests share: servers that they start, and files that they upload."""
