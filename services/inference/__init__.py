"""The inference service: images from warm base models with any mix of the caller's adapters.

It keeps nothing durable. Names are resolved by the registry at each request; bytes are cached by digest.
"""
