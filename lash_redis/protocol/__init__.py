"""What is sent, what is stored, and how it is encoded. No I/O."""
