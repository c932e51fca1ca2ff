"""A container's life: plan, limits, keeping, and its true end."""
