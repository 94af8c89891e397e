"""Model files on their way between nodes: each agent serves those of its catalog, and fetches those that it lacks."""
