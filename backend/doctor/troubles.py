"""Everything that `lasagna doctor` can name: how it comes about, what is said, and how it is mended.

This table is the only place of these texts. docs/doctor.md repeats it, and a test compares the two; other tests create
each trouble, in a real Label Studio. `{words}` in braces are filled in from what was found.
"""

from dataclasses import dataclass

_TOKEN_FIX = (
    "make one under Account & Settings > Personal Access Token and set LASAGNA_LABEL_STUDIO_TOKEN for `lasagna "
    "serve` and "
    "`lasagna worker`"
)


@dataclass(frozen=True)
class Trouble:
    """One thing that can be wrong.

    Attributes:
        check: The check that finds it (`backend.doctor.examine.CHECKS`).
        set_up: How it comes about.
        message: What was found, a format string.
        fix: What to do, a format string.
        is_note: It works nevertheless, and is only worth knowing.
    """

    check: str
    set_up: str
    message: str
    fix: str
    is_note: bool = False


TROUBLES: dict[str, Trouble] = {
    "redis-gone": Trouble(
        "redis",
        "Redis is not started, or its address or password is another",
        "nothing works without Redis: {error}",
        "start Redis, or correct LASAGNA_REDIS_URL; without that setting lasagna runs its own",
    ),
    "redis-unfit": Trouble(
        "redis",
        "Redis throws away what it has no memory for, is a cluster, is older than 6.2, or refuses to write",
        "this Redis cannot keep tasks: {reasons}",
        "set Redis up as the message says, or use one that is, or unset LASAGNA_REDIS_URL: lasagna then runs its own",
    ),
    "worker-none": Trouble(
        "worker",
        "`lasagna worker` is not started, has died, still loads its model, works on another Redis, or only trains",
        "no worker with a loaded model is on this Redis ({others})",
        "start `lasagna worker` with the same LASAGNA_REDIS_URL, and wait until it says `waiting for jobs`",
    ),
    "worker-versions": Trouble(
        "worker",
        "workers with different models share one Redis",
        "the workers on this Redis have different models ({versions}): which of them answers is chance",
        "start all workers with the same LASAGNA_MODEL, or give each model a Redis of its own",
    ),
    "address-unknown": Trouble(
        "label-studio",
        "nobody said where Label Studio is",
        "the address of Label Studio is not known: LASAGNA_LABEL_STUDIO_URL is not set, and no /setup has come{which}",
        "connect the backend under Settings > Model, or give --url, or set LASAGNA_LABEL_STUDIO_URL",
    ),
    "label-studio-gone": Trouble(
        "label-studio",
        "Label Studio is not started, or not reachable under the configured address",
        "no answer from Label Studio: {error}",
        "start Label Studio, or correct LASAGNA_LABEL_STUDIO_URL (or --url) to an address that works from this machine",
    ),
    "label-studio-other": Trouble(
        "label-studio",
        "the address is that of another program, of a login page in front, or redirects (http to https)",
        "{url} is not Label Studio: {found}",
        "correct LASAGNA_LABEL_STUDIO_URL (or --url) to the address under which Label Studio's API answers",
    ),
    "label-studio-failed": Trouble(
        "label-studio",
        "Label Studio fails, or a gateway before it does, or it does not let the token's user do what a check asks",
        "Label Studio refused or failed: {error}",
        "look into the log of Label Studio; take the token of a member who may change the project",
    ),
    "clock": Trouble(
        "clock",
        "the clock of this machine, of Label Studio's or of Redis's is wrong",
        "the clocks differ: this machine's is {seconds} s {direction} that of {other}; presigned addresses of "
        "images and "
        "access tokens end early, and workers seem dead",
        "set the clocks of all machines by a time server (`timedatectl set-ntp true`)",
    ),
    "token-missing": Trouble(
        "token",
        "no token is set, and none came with /setup",
        "there is no token for Label Studio",
        _TOKEN_FIX,
    ),
    "token-cut": Trouble(
        "token",
        "the token was copied from the list of tokens, which shows it without its last part",
        "the token {whose} is cut off: it has two parts and a personal access token has three",
        "Label Studio shows the whole token only once: " + _TOKEN_FIX,
    ),
    "token-expired": Trouble(
        "token",
        "the personal access token has ended",
        "the {kind} {whose} ended on {date}",
        _TOKEN_FIX,
    ),
    "token-access": Trouble(
        "token",
        "an access token is set where a personal access token belongs",
        "the token {whose} is an access token, which lives for five minutes",
        "it is what a personal access token is exchanged for: " + _TOKEN_FIX,
    ),
    "token-legacy-off": Trouble(
        "token",
        "a legacy token, and the organisation has legacy tokens switched off; Label Studio sends one with /setup "
        "nevertheless",
        "the token {whose} is a legacy one, and Label Studio has those switched off",
        _TOKEN_FIX + " (or switch legacy tokens on, under Organization > API Tokens Settings)",
    ),
    "token-refused": Trouble(
        "token",
        "the token was revoked, or belongs to another Label Studio",
        "Label Studio at {url} does not accept the {kind} {whose}: {detail}",
        _TOKEN_FIX,
    ),
    "project-none": Trouble(
        "project",
        "no such project, or one that the token's user may not see",
        "Label Studio has no project {project} for the {user}: {detail}",
        "take the number from the project's address (/projects/NUMBER/), and a token of one of its members",
    ),
    "config-control": Trouble(
        "labels",
        "no image, or nothing with labels that draws on it",
        "nothing can be predicted under this configuration: {error}",
        "change it under Settings > Labeling Interface > Code; label_config/ in this repository has examples",
    ),
    "config-alias": Trouble(
        "labels",
        "two labels of one control are written alike: the alias of one is the alias or the value of the other",
        "the labels {labels} of {control} are both written {written!r}, so that a region of one is taken for the other",
        "give each label an alias of its own",
    ),
    "config-absent": Trouble(
        "labels",
        'the Choices "absent" names something that is no label',
        'the Choices "absent" has {choices}, which no control has as a label: they are never listed',
        "write its choices like the labels, letter by letter",
    ),
    "note-not-served": Trouble(
        "labels",
        "a part of the labelling configuration that no prediction is made for: lines, labels that only key points "
        "have, an image that nothing draws on, a video; or that people cannot draw with: a control of two images",
        "{part}",
        "leave it as it is if people fill it in; else change it under Settings > Labeling Interface > Code",
        is_note=True,
    ),
    "note-unknown": Trouble(
        "backend",
        "labels that the model was never taught: it is not asked for them, and draws none",
        "{words}",
        "draw them: the instant head and a fine-tune learn them. A label that only has another name gets the model's "
        "word as its hint; to ask anyway: LASAGNA_GUESS_UNKNOWN=yes, or the extra parameter guess_unknown",
        is_note=True,
    ),
    "note-closed-list": Trouble(
        "backend",
        "labels that a model with a closed list does not have: it cannot be asked for them, and draws none",
        "{words}",
        "draw them by hand. A label that only has another name gets the model's word as its hint "
        "(`lasagna models check` prints what the model is); to have labels learnt, serve a checkpoint of LaSagnA",
        is_note=True,
    ),
    "backend-none": Trouble(
        "backend",
        "no backend is connected to the project",
        "project {project} has no ML backend",
        "connect it under Settings > Model > Connect Model: the address of `lasagna serve`, such as {url}",
    ),
    "backend-blocked": Trouble(
        "backend",
        "Label Studio refuses private addresses (`ML_BLOCK_LOCAL_IP`), when connecting or since",
        "Label Studio does not call {url}, because that is a private address: {detail}",
        "start Label Studio with ML_BLOCK_LOCAL_IP=false and SSRF_PROTECTION_ENABLED=false, then connect the "
        "backend again",
    ),
    "backend-unresolved": Trouble(
        "backend",
        "a host name that the machine of Label Studio does not know",
        "Label Studio does not know the host of {url}: {detail}",
        "connect the backend under a name or address that works from where Label Studio runs",
    ),
    "backend-other": Trouble(
        "backend",
        "another ML backend is connected, and before ours: Label Studio asks the first one only",
        "Label Studio asks the first of the {count} connected backends only, and {url} is not LaSagnA: {found}",
        "delete that connection under Settings > Model, and connect the address of `lasagna serve`",
    ),
    "backend-down": Trouble(
        "backend",
        "`lasagna serve` is not started, or the address is wrong",
        "Label Studio cannot reach the backend at {url}, and from here nothing answers either: {detail}",
        "start `lasagna serve`, or correct the address under Settings > Model",
    ),
    "backend-unreachable": Trouble(
        "backend",
        "the backend answers here and not to Label Studio (localhost inside a container, a firewall, a slow /health)",
        "Label Studio cannot reach the backend at {url}, which does answer from here",
        "connect an address that works from where Label Studio runs (in a container, localhost is the container)",
    ),
    "backend-password": Trouble(
        "backend",
        "the backend has a password (`LASAGNA_BASIC_AUTH`), and the connection has none or another",
        "the backend at {url} wants a user name and password, and those of the connection are not accepted",
        "enter them under Settings > Model > Edit",
    ),
    "backend-setup": Trouble(
        "backend",
        "the backend refuses the project, for a reason that it gives",
        "the backend at {url} refuses the project: {error}",
        "do what the message says, then Settings > Model > Edit > Validate and Save",
    ),
    "backend-redis": Trouble(
        "backend",
        "the connected `lasagna serve` works on another Redis than the one that was looked at",
        "Label Studio is connected to {url}, but its /setup did not arrive in the Redis that was looked at ({redis})",
        "start `lasagna serve`, `lasagna worker` and this command with the same LASAGNA_REDIS_URL",
    ),
    "note-interactive": Trouble(
        "backend",
        'the labelling configuration has smart="true", and the connection is not interactive',
        'clicks are not sent to the model: the configuration has smart="true", and the connection is not interactive',
        'switch "Interactive preannotations" on under Settings > Model > Edit',
        is_note=True,
    ),
    "note-train-on-submit": Trouble(
        "backend",
        '"Start model training on annotation submission" is on',
        "every submitted annotation asks for a fine-tune, whatever LASAGNA_TRAIN_WHEN says",
        'switch "Start model training on annotation submission" off under Settings > Model',
        is_note=True,
    ),
    "note-not-trained": Trouble(
        "backend",
        "another maker's model serves the project: nothing that asks for a fine-tune starts one",
        "{words}",
        "nothing, where that is meant; `lasagna models rollback` takes a project's own model back",
        is_note=True,
    ),
    "note-deadline": Trouble(
        "backend",
        "LASAGNA_PREDICT_DEADLINE is longer than gateways and Label Studio wait",
        "/predict may take {seconds} s (LASAGNA_PREDICT_DEADLINE); gateways often cut a request after 60 s and Label "
        "Studio after 100 s, and what is answered later is lost",
        "set LASAGNA_PREDICT_DEADLINE below what every gateway on the way waits; the rest is posted as it finishes",
        is_note=True,
    ),
    "host-name": Trouble(
        "host-name",
        "`LABEL_STUDIO_HOST` is not set in Label Studio, or is an address that does not work from the workers",
        "Label Studio calls itself {hostname}, and that does not work from here: {error}",
        "start Label Studio with LABEL_STUDIO_HOST set to an address that works from the workers, or set "
        "LASAGNA_LABEL_STUDIO_URL for `lasagna serve` and `lasagna worker`",
    ),
    "webhook-dotless": Trouble(
        "webhook",
        "the backend was connected under a host name without a dot: Label Studio makes no webhook for it, silently",
        "corrections are not noticed: there is no webhook to {url}, because Label Studio takes none for the host name "
        "{host!r} ({detail})",
        "give the backend a name with a dot (in compose a network alias such as backend.lasagna), delete the "
        "connection and "
        "connect that name",
    ),
    "webhook-blocked": Trouble(
        "webhook",
        "Label Studio refuses private addresses for webhooks (`SSRF_PROTECTION_ENABLED`): connecting says 403, and the "
        "backend is connected nevertheless",
        "corrections are not noticed: Label Studio takes no webhook to {url}, a private address ({detail})",
        "start Label Studio with SSRF_PROTECTION_ENABLED=false, delete the connection under Settings > Model and "
        "connect it "
        "again",
    ),
    "webhook-none": Trouble(
        "webhook",
        "the webhook was deleted, or the address of the connection was changed (Label Studio makes one on "
        "connecting only)",
        "corrections are not noticed: the project has no webhook to {url}",
        'Settings > Webhooks > Add Webhook with that address, "Send payload" and "Send for all actions"',
    ),
    "webhook-off": Trouble(
        "webhook",
        "the webhook is switched off, sends no payload or not all events that tell of corrections",
        "corrections are not noticed: the webhook to {url} {what}",
        'Settings > Webhooks > that webhook: active, "Send payload" and "Send for all actions"',
    ),
    "webhook-password": Trouble(
        "webhook",
        "a password, and the webhook carries none: Label Studio gives the webhook that it makes no credentials",
        "corrections are not noticed: {url} wants a password ({status}), and the webhook sends none that it accepts",
        "Settings > Webhooks > that webhook: the address http://USER:PASSWORD@HOST:PORT/webhook, or the header "
        "X-Lasagna-Secret with the value of LASAGNA_WEBHOOK_SECRET",
    ),
    "webhook-lost": Trouble(
        "webhook",
        "what Label Studio sends to the webhook does not arrive",
        "corrections are not noticed: an event that Label Studio sent to {url} did not arrive ({detail})",
        "look whether a gateway or firewall lies between Label Studio and that address, and into the log of "
        "`lasagna serve`",
    ),
    "note-webhook-stale": Trouble(
        "webhook",
        "a webhook of a connection that is gone: deleting a backend leaves its webhook",
        "the webhook to {url} belongs to no connected backend; it delays every submit by up to a second",
        "delete it under Settings > Webhooks",
        is_note=True,
    ),
    "tasks-none": Trouble(
        "image",
        "the project has no tasks",
        "project {project} has no tasks{which}",
        "import images, or name a task of the project with --task",
    ),
    "image-field": Trouble(
        "image",
        "the image is not where the labelling configuration says",
        "task {task} names no image: {error}",
        'import the task with that field, or correct value="$..." (or valueList) of the Image tag to where the address '
        "is",
    ),
    "task-labels": Trouble(
        "image",
        "the labels stand in the tasks, and this one has none",
        "there is nothing to ask of task {task}: {error}",
        'import the task with a list of labels, each an object with a "value", in the field that the control\'s '
        'value="$..." names',
    ),
    "image-address": Trouble(
        "image",
        "the field holds something else than an address: HTML, a path on somebody's machine, a path without its slash",
        "the image of task {task} is at no address: {error}",
        "import the task with an address that the editor shows: /data/upload/..., /data/local-files/?d=..., "
        "https://..., s3://...",
    ),
    "note-image-missing": Trouble(
        "image",
        "the configuration shows several images, and the task has not all of them",
        "task {task} has no image {image}: {error}",
        "the others are predicted; import the task with that field if it is to have the image",
        is_note=True,
    ),
    "note-list": Trouble(
        "image",
        'value="$..." holds a list of images',
        "task {task} shows a list of {count} images in {image!r}: Label Studio draws each region on all of them and "
        "does not say which it is meant for; the first is predicted, and nothing is learned from the task",
        'write valueList="$..." in place of value="$...": then each is a page of its own',
        is_note=True,
    ),
    "image-upload-gone": Trouble(
        "image",
        "an uploaded file is gone",
        "the uploaded file of task {task} is gone: {error}",
        "import the image again; if many are gone, the data folder of Label Studio was not kept (a volume is missing)",
    ),
    "image-local-files": Trouble(
        "image",
        "local files are not served, or no storage of the project covers that path",
        "task {task}: Label Studio does not serve the local file {address}: {why}",
        "start Label Studio with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and "
        "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT, and add a Local files storage below that root under Settings > Cloud "
        "Storage",
    ),
    "image-cloud": Trouble(
        "image",
        "no storage of the project covers the cloud address, or its credentials do not work",
        "the image of task {task} cannot be had from cloud storage: {error}",
        "add a storage for that address, with working credentials, under Settings > Cloud Storage (in the project "
        "itself)",
    ),
    "image-elsewhere": Trouble(
        "image",
        "the image lies on another host, which is not listed",
        "the image of task {task} lies on another host: {error}",
        "import the file into Label Studio, or list its host in LASAGNA_IMAGE_HOSTS for `lasagna worker`",
    ),
    "image-broken": Trouble(
        "image",
        "the file is no image that can be read, or over the limits",
        "the image of task {task} cannot be read: {error}",
        "replace the file; the other tasks are predicted nevertheless",
    ),
    "image-unreachable": Trouble(
        "image",
        "the image cannot be fetched for another reason",
        "the image of task {task} cannot be fetched: {error}",
        "open the image in a browser from the machine of the worker",
    ),
    "predict-failed": Trouble(
        "prediction",
        "the worker could not predict the task",
        "task {task} failed in the worker: {error}",
        "do what the message says, then `lasagna jobs retry`",
    ),
    "predict-waiting": Trouble(
        "prediction",
        "the worker has too much to do, hangs, or takes longer than the deadline",
        "task {task} is still {state} after {seconds} s",
        "`lasagna jobs` shows what runs; start more workers, or raise LASAGNA_PREDICT_DEADLINE (Label Studio waits "
        "100 s)",
    ),
    "predict-error": Trouble(
        "prediction",
        "Label Studio got an error or no answer in time: a gateway in front of the backend cuts the request, or it is "
        "too large for it",
        "Label Studio got no prediction of task {task} from {url}: {detail}",
        "look into the log of `lasagna serve`; where a gateway lies between, it must wait longer than "
        "LASAGNA_PREDICT_DEADLINE and pass large requests",
    ),
    "predict-dropped": Trouble(
        "prediction",
        "the prediction was answered, and Label Studio did not keep it",
        "task {task} was predicted and answered, and Label Studio has no prediction of {version}",
        "look into the log of Label Studio, which says why it dropped the answer",
    ),
    "predict-version": Trouble(
        "prediction",
        "web process and worker do not share one registry of versions, or a worker loads another model",
        "Label Studio was told {asked}, and {found} answered: predictions of the wrong version are asked for again and "
        "again",
        "give `lasagna serve` and `lasagna worker` the same folder as LASAGNA_REGISTRY, and the same LASAGNA_MODEL",
    ),
    "predict-mismatch": Trouble(
        "prediction",
        "the prediction was made under another labelling configuration, or by something else than this backend; Label "
        "Studio draws such regions grey, striped or not at all, and says nothing",
        "the prediction of task {task} does not fit the labelling configuration: {what}",
        "`lasagna prelabel {project} --refresh` makes the predictions anew",
    ),
    "shown-off": Trouble(
        "shown",
        "predictions are not used for labelling",
        "the predictions are there and not shown: project {project} does not use predictions to prelabel tasks",
        'switch "Use predictions to prelabel tasks" on under Settings > Annotation, and choose {title!r}',
    ),
    "shown-other": Trouble(
        "shown",
        "another model or version is chosen for labelling, or none",
        "the predictions of {version} are there and not shown: project {project} shows those of {shown}",
        "choose {title!r} under Settings > Annotation > Use predictions to prelabel tasks",
    ),
    "note-outdated": Trouble(
        "up-to-date",
        "labels, controls or parameters of the project were changed, the image of a task was replaced, or another "
        "version serves",
        "{count} of {all} predictions{of_all} are outdated ({why})",
        "`lasagna prelabel {project}` renews them and no others; with --dry-run it says what it would do",
        is_note=True,
    ),
}
