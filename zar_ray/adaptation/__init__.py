"""Features to a decision: ZAR and the methods it is compared with."""
