"""Names of schedulers, for those that only list them."""

EXACT, HETRL, PLANS = "exact", "hetrl", "plans"
SCHEDULERS = ("band_fixed", "band_rr", "band_sel", "band_heft", "band_heft_reserved", "band_lst", EXACT, HETRL)
