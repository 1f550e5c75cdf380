"""Load for a server: connections, loops that keep them busy, what came of it, and a chart."""
