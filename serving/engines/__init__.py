"""Retrieval: engines that turn users into ranked items, behind one interface."""
