"""From somebody's folder of scans and a few masks to a data folder that training reads."""
