"""Modelling files in torch that are copied into exported Baichuan folders; nothing here is imported by huatuo-jax itself."""
