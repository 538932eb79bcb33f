use crate::backend::{Backend, Role};
use crate::step::Step;
use crate::tensor::{HostArray, Shape, Tensor, Weight};
use crate::weights::{LoadError, Loader};

/// `x @ weight.T + bias`
pub struct Linear<B: Backend> {
    weight: Weight<B>,
    bias: Option<Tensor<B>>,
}

/// Whether a linear layer of the checkpoint has a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bias {
    No,
    Yes,
}

impl<B: Backend> Linear<B> {
    /// `name` is the layer's, without `.weight`.
    pub fn load(
        loader: &Loader<B>,
        name: &str,
        [out, input]: [usize; 2],
        bias: Bias,
    ) -> Result<Self, LoadError> {
        let weight = loader.weight(name, [out, input])?;
        let bias = match bias {
            Bias::No => None,
            Bias::Yes => Some(loader.tensor(&format!("{name}.bias"), &[out])?),
        };
        Ok(Self { weight, bias })
    }

    /// `N` layers of one shape that the checkpoint has as one, their outputs one after the other.
    pub fn load_parts<const N: usize>(
        loader: &Loader<B>,
        name: &str,
        [out, input]: [usize; 2],
        bias: Bias,
    ) -> Result<[Self; N], LoadError> {
        let biases = match bias {
            Bias::No => None,
            Bias::Yes => Some(loader.host_tensor(&format!("{name}.bias"), &[N * out])?),
        };
        let mut parts = Vec::with_capacity(N);
        for part in 0..N {
            let rows = part * out..(part + 1) * out;
            let weight = loader.rows(name, [N * out, input], rows.clone(), Role::Factor)?;
            loader.count_for_step(loader.backend().weight_bytes(&weight));
            let bias = biases.as_ref().map(|all| {
                let array = loader.backend().upload(HostArray::from_f32(&[out], &all[rows]))?;
                Ok::<_, LoadError>(Tensor::new(loader.backend(), array, Shape::new(&[out])))
            });
            parts.push(Self { weight, bias: bias.transpose()? });
        }
        Ok(parts.try_into().unwrap_or_else(|_| unreachable!("as many were made")))
    }

    /// `[tokens, in]` → `[tokens, out]`. The step will know each span's adapter, so it comes along.
    pub fn forward(&self, x: &Tensor<B>, _step: &Step<B>) -> Tensor<B> {
        product(x, &self.weight, self.bias.as_ref())
    }

    /// What some layers make of the same x.
    pub fn forward_all<const N: usize>(
        layers: [&Self; N],
        x: &Tensor<B>,
        _step: &Step<B>,
    ) -> [Tensor<B>; N] {
        products(x, layers.map(|layer| (&layer.weight, layer.bias.as_ref())))
    }
}

impl From<bool> for Bias {
    fn from(yes: bool) -> Self {
        if yes { Self::Yes } else { Self::No }
    }
}

pub(super) fn product<B: Backend>(
    x: &Tensor<B>,
    weight: &Weight<B>,
    bias: Option<&Tensor<B>>,
) -> Tensor<B> {
    let [product] = products(x, [(weight, bias)]);
    product
}

fn products<B: Backend, const N: usize>(
    x: &Tensor<B>,
    layers: [(&Weight<B>, Option<&Tensor<B>>); N],
) -> [Tensor<B>; N] {
    for (weight, _) in layers {
        let input = weight.shape().dim(1);
        assert_eq!(x.width(), input, "x {:?} times a weight {:?}", x.shape(), weight.shape());
    }
    let mut arrays = x.backend().linears(x, layers).into_iter();
    layers.map(|(weight, _)| {
        let array = arrays.next().expect("one array for each weight");
        Tensor::new(x.backend(), array, Shape::new(&[x.rows(), weight.shape().dim(0)]))
    })
}
