"""Model copies that live in processes. Plain Python: `cluster` makes Ray actors of them."""
