"""Single operations, one a file: a torch reference above, its Triton kernel below. Knows nothing else of Headrace."""
