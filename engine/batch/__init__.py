"""Asking through the Batch API: half the price for a day's wait."""
