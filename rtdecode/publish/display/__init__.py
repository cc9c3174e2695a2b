"""The page the operator watches."""
