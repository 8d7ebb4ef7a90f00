"""Every key that a study or a trial carries in its storage: who writes it, and who reads it.

Files of the package stand without their folder; each name exists once. "Optuna" includes its
dashboard, "queries" are those of the top-level folder ``storage/``. The sampler is usable alone
and imports nothing of ours, so its keys are defined there.

Study, user attributes:

| key                 | holds                      | written by      | read by                   |
|---------------------|----------------------------|-----------------|---------------------------|
| sgquant:plan        | all settings of the search | plan            | plan, preparation,        |
|                     |                            |                 | early_stop                |
| sgquant:record      | facts of graph and model   | record          | record, preparation, page |
| sgquant:final       | result on fresh seeds      | final_result    | final_result, page        |
| sgquant:weights     | file of the trained models | trained_models  | trained_models            |
| sgquant:early-stop  | why the search ended early | early_stop      | early_stop                |

Study, system attributes:

| key                 | holds                      | written by      | read by                   |
|---------------------|----------------------------|-----------------|---------------------------|
| sgquant:lease:TASK  | worker that does the task  | lease           | lease                     |
| sgquant:page        | state that the page shows  | page            | page                      |
| artifacts:ID        | name and type of a file    | study_files     | Optuna                    |
| dashboard:NAME      | notes                      | Optuna          | Optuna                    |
| study:metric_names  | names of the objectives    | Optuna          | Optuna                    |

Trial, user attributes (the first 14 are the fields of ``TrialResult``):

| key                 | holds                      | written by      | read by                   |
|---------------------|----------------------------|-----------------|---------------------------|
| accuracy            | validation accuracy, in %  | objective       | trial_result              |
| accuracy_drop       | percentage points          | objective       | trial_result, best_for    |
| average_bits        | bits a value               | objective       | trial_result              |
| bit_widths          | width of each site         | objective       | trial_result, queries     |
| drop_bound          | percentage points          | objective       | trial_result, queries     |
| estimated_drop      | percentage points          | objective       | trial_result              |
| evidence            | drops of the trainings     | objective       | trial_result              |
| flips               | percent of predictions     | objective       | trial_result              |
| memory_bytes        | honest accounting          | objective       | trial_result, queries     |
| paper_memory_bytes  | the paper's accounting     | objective       | trial_result              |
| paper_saving        | the paper's accounting     | objective       | trial_result              |
| saving              | honest accounting          | objective       | trial_result              |
| seconds             | wall time                  | objective       | trial_result, queries     |
| trainings           | finetunings that ended     | objective       | trial_result              |
| worker              | ``HOST:PID``               | objective       | status, queries           |
| sgquant:surplus     | true: beyond the budget    | budget          | budget, queries           |
| predicted           | prediction of the sampler  | sampler         | explain, server, settled, |
|                     |                            |                 | measurements              |

Trial, system attributes:

| key                 | holds                      | written by      | read by                   |
|---------------------|----------------------------|-----------------|---------------------------|
| sgquant:birth       | [token, mark of a process] | databases,      | databases, processes      |
|                     |                            | proxied         |                           |
| sgquant:asked       | token of a call by a proxy | proxied         | proxied                   |
| sgquant:beat        | last heartbeat             | heartbeat,      | heartbeat                 |
|                     |                            | proxied         |                           |
| sgquant:process     | [number, mark]             | processes       | processes                 |
| sgquant:claim       | choice of the sampler      | rounds          | claims                    |
| constraints         | [violation]                | objective       | Optuna                    |
| fixed_params        | enqueued parameters        | Optuna          | Optuna, history           |
| failed_trial        | number of what it repeats  | Optuna          | Optuna, queries, budget   |
| retry_history       | numbers of what it repeats | Optuna          | Optuna                    |
"""

PLAN_ATTR = "sgquant:plan"
RECORD_ATTR = "sgquant:record"
FINAL_ATTR = "sgquant:final"
WEIGHTS_ATTR = "sgquant:weights"
EARLY_STOP_ATTR = "sgquant:early-stop"

LEASE_PREFIX = "sgquant:lease:"
PAGE_ATTR = "sgquant:page"
ARTIFACT_PREFIX = "artifacts:"

WORKER_ATTR = "worker"
SURPLUS_ATTR = "sgquant:surplus"

BIRTH_ATTR = "sgquant:birth"
ASKED_ATTR = "sgquant:asked"
BEAT_ATTR = "sgquant:beat"
PROCESS_ATTR = "sgquant:process"
CONSTRAINTS_ATTR = "constraints"
COPY_OF_ATTR = "failed_trial"

CREATION_ATTRS = frozenset({BIRTH_ATTR, ASKED_ATTR, BEAT_ATTR})
"""System attributes that a trial may have before its configuration is chosen."""
