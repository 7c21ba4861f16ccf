"""Names of the lines that everything is measured against; nothing is imported for them."""

FLOOR = "frozen floor"
AGAIN = "frozen floor again"
FUSED_FLOOR = "frozen floor, q k v fused"
