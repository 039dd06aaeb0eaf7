"""SAEs in the lab: tested on plain text, converted from pickles, trained, and labelled."""
