"""What turns item vectors into codes: one interface, several ways."""
