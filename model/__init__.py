"""The recommender itself: embeddings, HSTU blocks, cascaded heads, loss. Knows no parallelism and no files."""
