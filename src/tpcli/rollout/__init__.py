"""Responses: engines that continue prompts, and a fake one for tests."""
