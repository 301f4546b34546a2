"""What items carry: tuples of codes, the table that holds them, the trie over them."""
