"""SDIM's long branch in its direct form: candidate against every behaviour, O(candidates x behaviours)."""

import torch


def collide(query, keys, planes):
    """Return (L, G) bool: does the behaviour share all tau bits of the signature with the query."""
    side_q = torch.einsum("d,dgt->gt", query.double(), planes.double()) > 0
    side_k = torch.einsum("ld,dgt->lgt", keys.double(), planes.double()) > 0
    return (side_k == side_q).all(-1)


def slow_sdim(query, query_offsets, key, key_offsets, value, planes, *, weights=None, normalise=True):
    """Return (Nc, V): mean over signatures of the (length 1) sum of the colliding behaviours' values."""
    rows = []
    for b in range(len(query_offsets) - 1):
        part = slice(int(key_offsets[b]), int(key_offsets[b + 1]))
        for c in range(int(query_offsets[b]), int(query_offsets[b + 1])):
            found = collide(query[c], key[part], planes).double()
            terms = value[part].double() if weights is None else value[part].double() * weights[part, None]
            sums = torch.einsum("lg,lv->gv", found, terms)
            if normalise:
                length = sums.norm(dim=1, keepdim=True)
                sums = torch.where(length > 0, sums / torch.where(length > 0, length, 1.0), 0.0)
            rows.append(sums.mean(0))
    return torch.stack(rows)
