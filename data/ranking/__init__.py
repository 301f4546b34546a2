"""Histories as a ranking model reads them: items and what was done with them, and what is to be predicted."""
