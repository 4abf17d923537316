"""C functions, each declared once with its types and its check, and the tables of architectures."""
