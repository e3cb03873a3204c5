"""Job log stores."""
