"""From run directories to tables and figures."""
