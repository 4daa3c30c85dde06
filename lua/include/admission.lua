-- The checks before those of a commit's content: the session is not another's, the head is readable, the lease is held,
-- the keys are complete, and no earlier attempt made the commit.

-- Returns the reply that ends the script, or nil if the commit may continue; then the facts of the session (nil for a
-- new one), the values of its head (see open_head), the revision, the time (ms) and the lease (false for none). The
-- values also have the revision that the commit follows and the receipts until then, those of a former session of the id
-- included: `counted` and `known`.
-- `others` are the session's other keys: log, nodes, jumps, dead, state. `access` is the owner for whom the caller
-- acts. `rows` are ledger fields to read with the head, or false.
local function admit(session, head, others, access, rows, tag, meaning, lease, adds_nodes, adds_state)
  local facts, broken, stored = open_head(head, others, access, rows)
  if broken then return refuse(session, broken) end
  if stored.deleted then return {'deleted', session} end
  local actual = facts and facts.revision or '0'
  stored.counted, stored.known = actual, stored.receipts
  if not facts then
    local past, receipts = past_of(head)
    if past then stored.counted, stored.known = past, receipts end
  end
  local wrong = broken_receipts(stored.known, stored.counted)
  if wrong then return refuse(session, wrong) end
  local found, made = find_receipt(stored.known, tag, stored.counted)
  local now = milliseconds()
  local held_lease = stored.lease and read_lease(stored.lease)
  if held_lease == nil then return refuse(session, {'corrupt', 'head', 'its lease is unreadable'}) end
  local why = lease ~= '' and lost_claim(held_lease, lease, now)
  if why then return {'lost', session, why, made or ''} end
  wrong = facts and torn_for_commit(facts, others, adds_nodes, adds_state)
  if wrong then return refuse(session, wrong) end
  if found then
    local past = past_of(head)
    if past and (#made < #past or #made == #past and made <= past) then return {'deleted', session} end
    if string.sub(stored.receipts, found + 8, found + 15) ~= meaning then return {'reused', session} end
    return {'replayed', session, made, facts.epoch + 0}
  end
  return nil, facts, stored, actual, now, held_lease
end
