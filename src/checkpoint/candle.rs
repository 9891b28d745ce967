//! The bridge to candle's `VarBuilder`: candle modules on the same mapped files.

use candle_core::{DType, Device, Error, Result, Shape, Tensor};
use candle_nn::Init;
use candle_nn::var_builder::{SimpleBackend, VarBuilder};

use super::Checkpoint;

impl Checkpoint {
    /// A `VarBuilder` over the tensors of this checkpoint, for candle modules of the caller's own.
    ///
    /// Each tensor is copied when it is asked for, converted to `dtype`, and put on `device`.
    ///
    /// ```
    /// use candle_core::{DType, Device};
    /// use candle_nn::Module as _;
    /// use tramontane::checkpoint::Checkpoint;
    /// # let json = br#"{"head.weight":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}}"#;
    /// # let mut file = (json.len() as u64).to_le_bytes().to_vec();
    /// # file.extend_from_slice(json);
    /// # file.extend_from_slice(&1_f32.to_le_bytes());
    /// # file.extend_from_slice(&2_f32.to_le_bytes());
    /// let checkpoint = Checkpoint::from_bytes(file, "head.safetensors")?;
    /// let weights = checkpoint.var_builder(DType::F32, &Device::Cpu);
    /// let head = candle_nn::linear_no_bias(2, 1, weights.pp("head"))?;
    /// let x = candle_core::Tensor::new(&[[3_f32, 4.]], &Device::Cpu)?;
    /// assert_eq!(head.forward(&x)?.to_vec2::<f32>()?, [[1. * 3. + 2. * 4.]]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn var_builder(&self, dtype: DType, device: &Device) -> VarBuilder<'static> {
        VarBuilder::from_backend(Box::new(Backend(self.clone())), dtype, device.clone())
    }
}

struct Backend(Checkpoint);

impl SimpleBackend for Backend {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: Init,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        let tensor = self.0.require(name).map_err(Error::wrap)?;
        if tensor.shape != shape.dims() {
            let what =
                format!("`{name}` has shape {:?}, expected {:?}", tensor.shape, shape.dims());
            return Err(Error::wrap(tensor.error(what)));
        }
        self.get_unchecked(name, dtype, device)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        let tensor = self.0.require(name).and_then(|t| t.tensor()).map_err(Error::wrap)?;
        tensor.to_device(device)?.to_dtype(dtype)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.0.get(name).is_some()
    }
}
