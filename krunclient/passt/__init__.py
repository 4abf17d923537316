"""What the passt child does before it becomes passt: the user-mode network of one guest."""
