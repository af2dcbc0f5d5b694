"""How weights are stored and multiplied: one ``Method`` a scheme. Knows neither models nor ranks."""
