"""Prepared sets: frames stored so that training reads them fast, and how they are made."""
