"""Certificates: numbers that prove a bound, and the code that checks them without any solver."""
