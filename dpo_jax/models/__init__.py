"""One decoder for every architecture, its attention, adapters and sampling."""
