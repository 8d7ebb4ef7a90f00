-- The best feasible trials that take at most :max_bytes: smallest bound of the drop first.
-- Parameters: study, max_bytes, max_drop (percentage points), number (of rows).
SELECT
    t.number AS trial,
    CAST(m.value_json AS DECIMAL(30, 3)) AS memory_bytes,
    CAST(d.value_json AS DECIMAL(30, 6)) AS drop_bound,
    b.value_json AS bit_widths
FROM studies s
JOIN trials t ON t.study_id = s.study_id AND t.state = 'COMPLETE'
JOIN trial_user_attributes m ON m.trial_id = t.trial_id AND m.key = 'memory_bytes'
JOIN trial_user_attributes d ON d.trial_id = t.trial_id AND d.key = 'drop_bound'
JOIN trial_user_attributes b ON b.trial_id = t.trial_id AND b.key = 'bit_widths'
WHERE s.study_name = :study
    AND CAST(m.value_json AS DECIMAL(30, 3)) <= :max_bytes
    AND CAST(d.value_json AS DECIMAL(30, 6)) <= :max_drop
ORDER BY drop_bound, memory_bytes, trial
LIMIT :number
