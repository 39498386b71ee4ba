"""What more cells to learn from bring."""
