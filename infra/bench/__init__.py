"""The benchmark: workloads on this system and on other durable engines, side by side on the same servers."""
