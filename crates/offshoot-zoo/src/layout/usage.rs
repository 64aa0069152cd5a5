//! How somebody who has never seen offshoot uses an exported folder: which library opens it, and how features come out of it.

/// What a layout's user has to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// The library that opens the folder, as model hubs name it.
    pub library: &'static str,
    /// What the model is for, as model hubs name it.
    pub task: &'static str,
    /// What `cls` and `patches` are, in words.
    pub features: &'static str,
    /// Lines of Python that make `features` of `image`; [`FOLDER`] stands for where the folder is.
    code: String,
}

/// The word that stands for the folder in the lines of a [`Usage`].
const FOLDER: &str = "FOLDER";

/// `cls` and `patches` of a network in stages.
pub(super) const OF_A_MAP: &str = "`cls` is the mean over the last map, one vector an image; `patches` is that map, row by row, every cell \
     twice in both directions";

/// `cls` and `patches` of a network with a class token.
pub(super) const OF_TOKENS: &str =
    "`cls` is the class token, one vector an image; `patches` has one vector a patch, row by row";

fn task(classes: usize) -> &'static str {
    if classes > 0 {
        "image-classification"
    } else {
        "image-feature-extraction"
    }
}

impl Usage {
    /// Of a model of transformers; `pool` makes an image's features of `last_hidden_state`.
    pub(super) fn transformers(classes: usize, features: &'static str, pool: &str) -> Self {
        let (auto, run) = if classes > 0 {
            let run = format!(
                "logits = model(pixel_values).logits\nfeatures = model.base_model(pixel_values).last_hidden_state{pool}"
            );
            ("AutoModelForImageClassification", run)
        } else {
            (
                "AutoModel",
                format!("features = model(pixel_values).last_hidden_state{pool}"),
            )
        };
        let code = format!(
            "from transformers import AutoImageProcessor, {auto}\n\nprocessor = AutoImageProcessor.from_pretrained(\"{FOLDER}\")\n\
             model = {auto}.from_pretrained(\"{FOLDER}\")\n\
             pixel_values = processor(image, return_tensors=\"pt\")[\"pixel_values\"]\n{run}\n"
        );
        Self {
            library: "transformers",
            task: task(classes),
            features,
            code,
        }
    }

    /// Of a decoder language model of transformers.
    pub(super) fn decoder() -> Self {
        let code = format!(
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\ntokenizer = AutoTokenizer.from_pretrained(\"{FOLDER}\")\n\
             model = AutoModelForCausalLM.from_pretrained(\"{FOLDER}\")\n\
             ids = tokenizer(\"Once upon a time\", return_tensors=\"pt\")\n\
             print(tokenizer.decode(model.generate(**ids, max_new_tokens=50)[0]))\n"
        );
        Self {
            library: "transformers",
            task: "text-generation",
            features: "`logits` has one score for each token of the vocabulary, of the token that comes next",
            code,
        }
    }

    /// Of a residual network of timm. `norm` is what its norm is, as Python, where a folder cannot say it.
    pub(super) fn timm(classes: usize, norm: Option<&str>) -> Self {
        let (before, after, norm, argument) = match norm {
            None => ("", "", String::new(), ""),
            Some(call) => (
                "import functools\n\n",
                if call.starts_with("torch.") {
                    "import torch\n"
                } else {
                    ""
                },
                format!("# timm does not take these numbers from a folder.\nnorm = functools.partial({call})\n"),
                ", norm_layer=norm",
            ),
        };
        let logits = if classes > 0 {
            "logits = model(pixel_values)\n"
        } else {
            ""
        };
        let code = format!(
            "{before}import timm\n{after}\n{norm}model = timm.create_model(\"local-dir:{FOLDER}\", pretrained=True{argument}).eval()\n\
             prepare = timm.data.create_transform(**timm.data.resolve_model_data_config(model))\n\
             pixel_values = prepare(image)[None]\n{logits}features = model.forward_features(pixel_values).mean((2, 3))\n"
        );
        Self {
            library: "timm",
            task: task(classes),
            features: OF_A_MAP,
            code,
        }
    }

    /// Lines of Python that make `features`, and `logits` where there is a classifier, of `image` by the model in `folder`.
    pub fn python(&self, folder: &str) -> String {
        self.code.replace(FOLDER, folder)
    }
}
