"""What the pairs say of sizes that they cannot have."""


def check(**sizes: int) -> None:
    """ValueError that names a size below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} is {size}; expected at least 1")
