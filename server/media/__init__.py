"""What clients may send as video or image, and where it may come from."""
