"""Makes the documentation a site: `make docs`. Committed pages are staged, reference pages are made of the code."""
