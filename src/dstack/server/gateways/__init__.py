"""Gateways: put on hosts over SSH, kept connected to, and told which services to publish."""
