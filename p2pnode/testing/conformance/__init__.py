"""Suites that every implementation of an interface passes; subclass one in a test module."""
